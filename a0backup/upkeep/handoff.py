"""Hand out what a support engineer needs for a restore: artifact, checksums, manifest, instructions; no password.

DIR/backup.tar.gz.enc  MD5SUMS  SHA256SUMS  manifest.json  RESTORE.md
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from a0backup.files import CHUNK, Hasher, fsync_directory, make_new_directory, open_private, open_regular
from a0backup.report.words import code, human_size
from a0backup.vault.manifest import MANIFEST, Manifest
from a0backup.vault.vault import Vault, reading, require_same

MD5SUMS, SHA256SUMS, PAGE = "MD5SUMS", "SHA256SUMS", "RESTORE.md"


def handoff(vault: Vault, manifests: Sequence[Manifest], target: Path) -> None:
    """Make the folder *target*, mode 0700, with all that opens the artifacts of *manifests* except their passwords.

    Several artifacts get a folder each in it, named by their ids. The manifests omit the sealed passwords:
    anyone who later obtains the private recovery key could use them to open what was handed out.

    Raise ArtifactDamagedError if an artifact does not match its manifest, FileExistsError if
    *target* already exists, OSError; then nothing is left.
    """
    if os.path.lexists(target):
        raise FileExistsError(17, os.strerror(17), str(target))
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    make_new_directory(aside)
    try:
        for manifest in manifests:
            folder = aside
            if len(manifests) > 1:
                folder = aside / manifest.id.replace("/", "-")
                make_new_directory(folder)
            _fill(vault, manifest, folder)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside)
        raise
    fsync_directory(target.parent)


def _fill(vault: Vault, manifest: Manifest, folder: Path) -> None:
    _copy(vault, manifest, folder / manifest.artifact.file)
    artifact = manifest.artifact
    texts = {
        MANIFEST: json.dumps(without_sealed(manifest).to_json(), indent=2) + "\n",
        PAGE: page(manifest),
        MD5SUMS: f"{artifact.md5}  {artifact.file}\n",
    }
    sums = {artifact.file: artifact.sha256}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    texts[SHA256SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    for name, text in texts.items():
        with open(folder / name, "xb", opener=open_private) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    fsync_directory(folder)


def without_sealed(manifest: Manifest) -> Manifest:
    """Return *manifest* without the sealed passwords."""
    password = manifest.encryption.password.model_copy(update={"sealed": ()})
    return manifest.model_copy(update={"encryption": manifest.encryption.model_copy(update={"password": password})})


def _copy(vault: Vault, manifest: Manifest, target: Path) -> None:
    """Copy the artifact, and check on the way that it matches its manifest. Raise ArtifactDamagedError."""
    hasher = Hasher()
    with open(target, "xb", buffering=0, opener=open_private) as file:
        for chunk in _chunks(vault, manifest):
            hasher.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    require_same(manifest, hasher.digests())


def _chunks(vault: Vault, manifest: Manifest) -> Iterator[bytes]:
    with reading(vault, manifest) as path, open(path, "rb", buffering=0, opener=open_regular) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def page(manifest: Manifest) -> str:
    """Return RESTORE.md: what the artifact is, where it comes from, how to check it and how to open it."""
    artifact, verified = manifest.artifact, manifest.verified
    started = f"{manifest.started_at:%Y-%m-%d %H:%M:%S} UTC" if manifest.started_at else "not known"
    read = (
        f"read to its end when it was stored: {verified.members} members, {verified.unpacked_size} bytes unpacked"
        if verified.level == "contents"
        else "its contents were not read when it was stored"
    )
    more = (
        "\nFrom appliance build 11638 on it does not hold the encryption keys: a full recovery also needs the\n"
        "artifact of the kind `backup-sensitive` of the same node and night.\n"
        if manifest.kind == "backup"
        else ""
    )
    return f"""\
# A {manifest.kind} of an Auth0 PSaaS Appliance node

| | |
| --- | --- |
| node | {manifest.node.name} |
| kind | {manifest.kind}, made by `a0cli {manifest.kind}` |
| name on the node | {code(manifest.name_on_node)} |
| started | {started} |
| stored | {manifest.stored_at:%Y-%m-%d %H:%M:%S} UTC |
| file | {artifact.file}, {artifact.size} bytes ({human_size(artifact.size)}) |
| md5 | {artifact.md5}, as the node named it in `backup-status` |
| contents | {read} |

The file is exactly what the node sent: a tar.gz, encrypted by the node with AES-256-CTR; key and IV are derived from
the password by one round of MD5 without salt (OpenSSL's EVP_BytesToKey).
{more}
## Check it

```sh
md5sum -c MD5SUMS
sha256sum -c SHA256SUMS
```

## Open it

The password is not in here. It comes to you by another way, from the operator who handed you this.

```sh
openssl enc -d -aes-256-ctr -md md5 -nosalt -in {artifact.file} | tar tz     # list; openssl asks for the password
openssl enc -d -aes-256-ctr -md md5 -nosalt -in {artifact.file} | tar xz     # unpack here
```

OpenSSL may warn of a deprecated key derivation: that is what the appliance uses. A wrong password raises no error in
openssl; it shows as `not in gzip format`.
"""

"""The commented fleet.yaml that `a0backup init` writes."""

from typing import Final

EXAMPLE: Final = """\
# The fleet: which nodes are backed up, and how. `a0backup check` tries it without changing anything.

vault: ./vault                  # where verified backups are kept, relative to this file

a0cli:
  path: a0cli                   # found on PATH, or a path
  key_dir: ~/.a0cli             # the key pair that `a0cli create-key` made
  # call_timeout: 60s           # any call but retrieve
  # retrieve_timeout: 6h
  # password_style: positional  # or option: `backup --password P`
  # replies: {}                 # more wordings, e.g. {absent: ["Nothing stored"]}

password:                       # exactly one of these; never the password itself
  sealed_to: recovery.pub.pem   # a new random password for each; `a0backup key create` makes the key pair
  # A password of your own for all backups is weaker: a0cli encrypts without a salt, so they share one keystream, and
  # who has two of them can take one from the other.
  # file: ./a0-backup-password            # only for this user to read: chmod 600
  # env: A0_BACKUP_PASSWORD
  # secret_block: a0-backup-password      # a Prefect Secret block, on a Prefect server of your own

# polling: {interval: 15s, max_interval: 2m, deadline: 4h}   # deadline: of the await alone; from 1s up
# lock_deadline: 2h             # how long to wait for a node that another run holds
# max_parallel: 16              # nodes at once
# retrieve_attempts: 3          # when the md5 does not match
# existing: preserve            # a backup found on the node that is not ours: preserve | replace | fail
# contents: {max_unpacked: 10TB, max_ratio: 200}   # one that unpacks to more is refused
# kinds: [backup]               # from build 11638 on also backup-sensitive; also {user-export: [_id, email]}

nodes:
  - name: a0-1                  # also its folder in the vault
    host: 192.168.1.186
    # port: 10121
    # build: 13451              # below 6868 is refused without touching the node
"""

"""The commented fleet.yaml that `a0backup init` writes."""

from typing import Final

EXAMPLE: Final = """\
# The fleet: which nodes to back up, and how. `a0backup check` tests this file without changing anything.

vault: ./vault                  # the folder of the verified backups, relative to this file

a0cli:
  path: a0cli                   # a name on PATH, or a path
  key_dir: ~/.a0cli             # the key pair that `a0cli create-key` made
  # call_timeout: 60s           # timeout of every call except a retrieval
  # retrieve_timeout: 6h
  # env: [HTTPS_PROXY]          # additional environment variables that a0cli is given
  # password_style: positional  # or option: `backup --password P`
  # replies: {}                 # additional wordings, e.g. {absent: ["Nothing stored"]}

password:                       # exactly one of these; never the password itself
  sealed_to: recovery.pub.pem   # a new random password for each backup; `a0backup key create` makes the key pair
  # One shared password for all backups is weaker: a0cli encrypts without a salt, so they share one keystream, and
  # anyone who has two of them can cancel the encryption of one against the other.
  # file: ./a0-backup-password            # readable only by this user: chmod 600
  # env: A0_BACKUP_PASSWORD
  # secret_block: a0-backup-password      # a Prefect Secret block, on your own Prefect server

# copies: [{name: nas, url: /mnt/nas/a0}]   # further places: a folder, s3://bucket/prefix, sftp://a0@host/srv/a0
# require_copies: 1             # proven copies before a backup is deleted on its node

# retention: {keep_daily: 14, keep_weekly: 8, keep_monthly: 12}   # what `a0backup prune` keeps; otherwise everything

# polling: {interval: 15s, max_interval: 2m, deadline: 4h}   # deadline: of the wait alone; minimum 1s
# lock_deadline: 2h             # how long to wait for a node that another run has locked
# max_parallel: 16              # maximum number of nodes at once
# retrieve_attempts: 3          # maximum, for a failed retrieval or an md5 mismatch
# existing: preserve            # for a backup that this vault did not start: preserve | replace | fail
# reuse_within: 6h              # a backup that a stopped run started earlier is kept, and a new one is made
# give_up_after: 2              # nights, for a backup that arrives whole and never matches its md5
# contents: {max_unpacked: 10TB, max_ratio: 200}   # an artifact that unpacks to more is refused
# health: {url: "https://{host}/health", key: {file: health.key}, ca_file: ca.pem}   # asked before each backup
# freshness: {max_age: 26h}     # `a0backup status` fails for an older newest backup; off: for none
# drills: {max_age: 90d, shrink: 30%}              # warn of older drills, and of backups that shrank by more
# kinds: [backup]               # from build 11638 on also backup-sensitive; also {user-export: [_id, email]}

nodes:
  - name: a0-1                  # also its folder in the vault
    host: 192.168.1.186
    # port: 10121
    # build: 13451              # a node below 6868 is refused and not touched
    # freshness: {max_age: 8d}  # for this node alone
"""

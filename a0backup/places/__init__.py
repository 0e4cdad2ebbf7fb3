"""Copies of the vault's artifacts in further places: another disk, an S3 bucket, an SFTP server."""

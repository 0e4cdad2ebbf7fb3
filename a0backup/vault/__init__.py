"""The vault: verified artifacts, each in a folder with its manifest."""

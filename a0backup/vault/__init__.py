"""The vault: verified artifacts, each in a folder with the manifest that says what it is."""

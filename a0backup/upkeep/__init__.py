"""What is done with stored artifacts."""

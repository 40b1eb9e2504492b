"""What every party of a study must hold identically, from the data contract to the messages."""

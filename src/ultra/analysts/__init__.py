"""Who reads episodes, names critical states and gives advice: one protocol, one file each."""

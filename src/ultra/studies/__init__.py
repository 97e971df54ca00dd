"""Studies: tasks x methods x analysts x seeds, run on one machine or a Ray cluster, and their report."""

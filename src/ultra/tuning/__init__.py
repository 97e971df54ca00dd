"""Which of many programs are worth something, and with what numbers: race, tune, combine."""

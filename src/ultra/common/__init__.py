"""What every stage uses: errors, files, records, locks, statistics, pages, the ledger."""

"""Outside data as Examples: the batches of trainers, files, folders, data sets of the Hub."""

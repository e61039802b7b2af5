"""Reading studies: their directories, journals, statistics, the paper's numbers."""

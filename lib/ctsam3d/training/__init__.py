"""Algorithm 1 of the paper: the pairs that are drawn, one step of click rounds, and the loop."""

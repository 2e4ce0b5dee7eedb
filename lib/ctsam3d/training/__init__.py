"""Algorithm 1 of the paper: what is drawn, one step, and the loop."""

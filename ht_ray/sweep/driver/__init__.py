"""Driver of a study: its run settings and the cluster, Ray, Tune, and what is written down of the trials."""

"""The driver: runs a study on Ray Tune. Importing its modules imports Ray."""

"""Methods for algorithms of RLlib: config and learner mixins."""

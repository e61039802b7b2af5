from tune_configs.study import Results, Study

__all__ = ["Results", "Study", "__version__"]

__version__: str

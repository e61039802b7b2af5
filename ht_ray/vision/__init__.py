"""Images in memory, streams of phases, the paper's networks, and the plain loop; torch alone is needed.

torchvision and scikit-learn are imported when a data set is read.
"""

from ht_ray.errors import Interrupted
from ht_ray.methods import METHODS, MethodConfig, display_name, method_parts, parse_method
from ht_ray.vision.data.augment import AUGMENTATIONS, random_crop_flip
from ht_ray.vision.data.dataset import DATA_SETS, DataConfig, ImageData, hold_out, image_encoding, load_data
from ht_ray.vision.data.loader import InMemoryLoader, Normalise
from ht_ray.vision.data.reservoir import Reservoir
from ht_ray.vision.data.streams import (
    STREAMS,
    ContinualConfig,
    Phase,
    Stream,
    StreamConfig,
    WarmStartConfig,
    continual,
    make_stream,
    noise_schedule,
    noisy_labels,
    register_stream,
    stream_config,
    warm_start,
)
from ht_ray.vision.data.task_streams import (
    BinaryConfig,
    BitFlippingConfig,
    ClassIncrementalConfig,
    DriftingConfig,
    FivePlusOneConfig,
    GrowingConfig,
    PermutedConfig,
    RandomLabelsConfig,
    ShuffledClassesConfig,
    TaskStreamConfig,
)
from ht_ray.vision.models import ModelConfig, Network, make_model
from ht_ray.vision.training.evaluate import Evaluation, evaluate, evaluating
from ht_ray.vision.training.fit import (
    Diverged,
    Row,
    fit,
    load_checkpoint,
    plasticity,
    save_checkpoint,
    summarise,
    transfer,
)
from ht_ray.vision.training.indicators import make_indicators
from ht_ray.vision.training.optimizer import TrainingConfig, make_optimizer, set_learning_rate, warmup_factor
from ht_ray.vision.training.pack import Pack, obstacle_to_packing
from ht_ray.vision.training.run import TrainingRun

__all__ = [
    "AUGMENTATIONS",
    "DATA_SETS",
    "METHODS",
    "STREAMS",
    "BinaryConfig",
    "BitFlippingConfig",
    "ClassIncrementalConfig",
    "ContinualConfig",
    "DataConfig",
    "Diverged",
    "DriftingConfig",
    "Evaluation",
    "FivePlusOneConfig",
    "GrowingConfig",
    "ImageData",
    "InMemoryLoader",
    "Interrupted",
    "MethodConfig",
    "ModelConfig",
    "Network",
    "Normalise",
    "Pack",
    "PermutedConfig",
    "Phase",
    "RandomLabelsConfig",
    "Reservoir",
    "Row",
    "ShuffledClassesConfig",
    "Stream",
    "StreamConfig",
    "TaskStreamConfig",
    "TrainingConfig",
    "TrainingRun",
    "WarmStartConfig",
    "continual",
    "display_name",
    "evaluate",
    "evaluating",
    "fit",
    "hold_out",
    "image_encoding",
    "load_checkpoint",
    "load_data",
    "make_indicators",
    "make_model",
    "make_optimizer",
    "make_stream",
    "method_parts",
    "noise_schedule",
    "noisy_labels",
    "obstacle_to_packing",
    "parse_method",
    "plasticity",
    "random_crop_flip",
    "register_stream",
    "save_checkpoint",
    "set_learning_rate",
    "stream_config",
    "summarise",
    "transfer",
    "warm_start",
    "warmup_factor",
]

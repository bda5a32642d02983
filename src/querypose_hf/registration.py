"""Makes Transformers know QueryPose, without importing either before they are used.

Transformers looks models up in a few registries, such as `CONFIG_MAPPING` behind `AutoConfig`. Their `register`
functions take classes, and importing ours takes seconds. So each registry gets our classes when it is first used. That
it is used shows in an attribute being read, see [`_register_at_first_use`]; where Transformers is not imported yet, an
import hook prepares its registries at the end of their modules.

Nothing of ours is imported within an import of Transformers, which in turn is imported by ours: no import waits for
another.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .assets import QUERYPOSE_NANO


def register_with_transformers() -> None:
    """Registers QueryPose's classes with Transformers, whether it has been imported or will be."""
    if _finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _finder)
    for name in _REGISTRIES:
        if name in sys.modules:
            _prepare(importlib.import_module(name))  # waits where another thread is importing it


def _register_config() -> None:
    from transformers import AutoConfig

    from .model.configuration_querypose import QueryPoseConfig

    AutoConfig.register("querypose", QueryPoseConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel

    from .model.modeling_querypose import QueryPoseConfig, QueryPoseModel

    AutoModel.register(QueryPoseConfig, QueryPoseModel, exist_ok=True)


def _register_pose_estimation() -> None:
    from transformers import AutoModelForPoseEstimation

    from .model.modeling_querypose import QueryPoseConfig, QueryPoseForPoseEstimation

    AutoModelForPoseEstimation.register(QueryPoseConfig, QueryPoseForPoseEstimation, exist_ok=True)


def _register_image_processors() -> None:
    from transformers import AutoImageProcessor

    from .model.configuration_querypose import QueryPoseConfig
    from .model.image_processing_pil_querypose import QueryPoseImageProcessorPil
    from .model.image_processing_querypose import QueryPoseImageProcessor

    classes = {"torchvision": QueryPoseImageProcessor, "pil": QueryPoseImageProcessorPil}
    AutoImageProcessor.register(QueryPoseConfig, image_processor_classes=classes, exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModelForPoseEstimation
    from transformers.pipelines import PIPELINE_REGISTRY

    from .model.pipeline_querypose import PoseEstimationPipeline

    if "pose-estimation" not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            "pose-estimation",
            pipeline_class=PoseEstimationPipeline,
            pt_model=AutoModelForPoseEstimation,
            default={"model": (QUERYPOSE_NANO, "main")},
            type="image",
        )


#: Transformers' registries by module, and what registers with them.
_REGISTRIES: dict[str, dict[str, Callable[[], None]]] = {
    "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING": _register_config},
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING": _register_model,
        "MODEL_FOR_POSE_ESTIMATION_MAPPING": _register_pose_estimation,
    },
    "transformers.models.auto.image_processing_auto": {"IMAGE_PROCESSOR_MAPPING": _register_image_processors},
    "transformers.pipelines": {"PIPELINE_REGISTRY": _register_pipeline},
}
_lock = threading.RLock()
_running: set[Callable[[], None]] = set()


def _prepare(module: ModuleType) -> None:
    for name, register in _REGISTRIES[module.__name__].items():
        _register_at_first_use(getattr(module, name), register)


def _register_at_first_use(registry: Any, register: Callable[[], None]) -> None:
    """Makes an object call `register` before one of its attributes is first read.

    Until then the object is of a subclass of its own class. Other threads wait for `register` to end; what it raises
    reaches the reader, and the next reader tries again.
    """
    own_class: Any = type(registry)

    class Unregistered(own_class):
        def __getattribute__(self, name: str) -> Any:
            with _lock:
                if type(self) is Unregistered and register not in _running:
                    _running.add(register)
                    try:
                        register()
                    finally:
                        _running.remove(register)
                    object.__setattr__(self, "__class__", own_class)
            return own_class.__getattribute__(self, name)

    registry.__class__ = Unregistered


class _Finder(MetaPathFinder):
    """Has the modules of the registries found by the other finders, and prepared once they have been executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTRIES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self._loader  # type: ignore[union-attr]
        self._loader.exec_module(module)
        _prepare(module)


_finder = _Finder()

"""Components that are ONNX graphs. They lie next to `config.json` and run in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import ConfigMixin, ModelMixin

from diffdeid.errors import AssetNotFoundError


class OnnxModel(ModelMixin, ConfigMixin):
    """Loads and runs the graphs that a subclass names.

    Each is prepared on its first run: to prepare all of them takes as long as reading all other weights, and most photos need
    three of the five.

    Attributes:
        graph_names: names of the files, without `.onnx`.
        graphs: name -> content of the file.
        device: the device that was passed to `to`.
    """

    graph_names: tuple[str, ...] = ()
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.graphs: dict[str, bytes] = {}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._providers: list[str | tuple[str, dict]] = ["CPUExecutionProvider"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs):
        """Load `config.json` and the graphs from a folder.

        Other keyword arguments (dtype, device map, …) are for components with tensors and are ignored.

        Raises:
            AssetNotFoundError: a file is missing.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        for path in [folder / "config.json", *(folder / f"{name}.onnx" for name in cls.graph_names)]:
            if not path.is_file():
                raise AssetNotFoundError(f"`{cls.__name__}` needs the file `{path}`, which does not exist.")
        model = cls.from_config(cls.load_config(folder))
        model.graphs = {name: (folder / f"{name}.onnx").read_bytes() for name in cls.graph_names}
        return model

    def to(self, *args, **kwargs) -> OnnxModel:
        """Run the graphs on a GPU if onnxruntime can (install `onnxruntime-gpu` in place of `onnxruntime`), else on the CPU.

        A dtype is ignored.
        """
        named = [one for one in (*args, *kwargs.values()) if isinstance(one, str | torch.device)]
        device = torch.device(named[0]) if named else self.device
        self.device = device
        providers: list[str | tuple[str, dict]] = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            # Pictures have many sizes; a search for the best algorithm for each would take longer than it saves.
            providers.insert(
                0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "cudnn_conv_algo_search": "HEURISTIC"})
            )
        if providers != self._providers:
            self._providers, self._sessions = providers, {}
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs):
        """Write `config.json` and the graphs; keyword arguments are for tensors and are ignored."""
        self.save_config(save_directory)
        for name, graph in self.graphs.items():
            Path(save_directory, f"{name}.onnx").write_bytes(graph)

    def run(self, graph: str, x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        """Run a graph on its one input `x`; gives the named outputs."""
        if graph not in self.graphs:
            raise AssetNotFoundError(f"`{graph}.onnx` is not loaded. Create the `{type(self).__name__}` with `from_pretrained`.")
        if graph not in self._sessions:
            self._sessions[graph] = self._open(graph)
        session = self._sessions[graph]
        return session.run(outputs, {session.get_inputs()[0].name: x})

    def _open(self, graph: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that keep spinning after a run would take the cores from torch, which runs between these graphs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(self.graphs[graph], options, providers=self._providers)

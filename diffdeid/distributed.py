"""Many files on a Ray cluster: each file is a row of a dataset, each device has a worker with the networks.

Every node needs this package, the weights and the files under the same paths. The driver decides which outputs are to be made.
Workers replace files that have these names: only a worker that died can have left them. So a file is done again only if its
worker died before it reported on it.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from threading import Lock
from typing import Any

from diffdeid.batch import How, Task, decided, gathered, make
from diffdeid.command_line import for_videos, load
from diffdeid.engine.faces import GPU_BATCH, split
from diffdeid.errors import ConfigurationError
from diffdeid.face_lists import FaceList
from diffdeid.io.manifest import Manifest
from diffdeid.planning import Job, is_video

# For each pass: how many parts of the work a worker has in hand (one is read, one is with the networks, one is written); how many
# files a part has at most, so that they fill the batches of a GPU; and how often a part is tried again when its worker dies. The
# second pass does what is left one by one, since a file that kills its worker takes the files beside it along.
PASSES = ((3, GPU_BATCH, 3), (1, 1, 1))


def run_on_ray(
    jobs: Sequence[Job],
    how: How,
    loading: tuple[str, str, str],
    known: Mapping[Path, FaceList] | None = None,
    manifest: Manifest | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Do the same as `batch.run`, with the same results for the same seed; records come in the order in which files are finished.
    Args:
        loading: `model`, `device` and `dtype`, as `load` takes them on a worker.
        workers: processes with the networks. Default: one for each GPU, or for each CPU where there are none.
        address: of the cluster. Default: the one that `RAY_ADDRESS` names, or that runs here, or a new one on this machine.

    Raises:
        ConfigurationError: no cluster can be reached, it is too small for the workers, or these cannot start.
    """
    waiting: dict[int, Task] = {}
    tasks = (Task(job, how, known.get(job.source.resolve()) if known else None) for job in jobs)
    for number, task in enumerate(decided(tasks, manifest)):
        if task.missing:
            task.overwrite = True
            waiting[number] = task
        else:
            yield task.finish()
    if not waiting:
        return

    with _cluster(address):
        pool = _pool(workers, loading[1])
        constructor = [os.getcwd(), *loading, how.options.reconstruction]
        for at_once, most, retries in PASSES:
            for number, records in _pass(waiting, constructor, pool, at_once, most, retries):
                task = waiting.pop(number)
                if manifest is not None:
                    manifest.add(records, task.digest, task.job.outputs)
                yield records
        for task in waiting.values():
            task.records.append({"error": "Its worker died again and again. Check that there is enough memory."})
            yield task.finish()


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster for the length of the block, unless the caller is connected already."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else Ray reports to its makers
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'`{error.name}` is missing. Run `pip install "diffdeid[ray]"`.') from error

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong becomes records
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    if ray.is_initialized():
        yield
        return
    with redirect_stdout(sys.stderr):  # Ray may write about workers that died, and stdout is for records
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(f"No Ray cluster can be reached: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _pool(workers: int | None, device: str) -> dict[str, int]:
    """The number of workers, and which resources of the cluster each of them takes."""
    import ray

    there_are = ray.cluster_resources()
    kind = "GPU" if device == "cuda" or (device == "auto" and there_are.get("GPU", 0) >= 1) else "CPU"
    most = int(there_are.get(kind, 0))
    if most < (workers or 1):  # Ray would wait for more machines
        raise ConfigurationError(f"The cluster has {most} {kind}s for {workers or 1} workers. Pass fewer `--workers`.")
    return {"size": workers or most, "num_cpus": 1, "num_gpus": int(kind == "GPU")}


def _pass(
    waiting: Mapping[int, Task], constructor: list[str], pool: dict[str, int], at_once: int, most: int, retries: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Do the waiting tasks; yields the number and the records of each that could be done."""
    from ray.data import ActorPoolStrategy, from_items
    from ray.exceptions import RayError

    if not waiting:
        return
    files = min(most, 1 + len(waiting) // (pool["size"] * at_once)) if pool["num_gpus"] else 1  # so that all workers get some
    rows = [{"tasks": pickle.dumps(part)} for part in _parts(waiting, files)]
    size, resources = min(pool["size"], len(rows)), {name: pool[name] for name in ("num_cpus", "num_gpus")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no other way yet to say how often something is tried
        done = from_items(rows, override_num_blocks=len(rows)).map(  # a block is what Ray does again
            _Worker,
            fn_constructor_args=constructor,
            compute=ActorPoolStrategy(size=size, max_concurrent_calls_per_actor=at_once, enable_true_multi_threading=True),
            max_restarts=-1,
            max_task_retries=retries,
            **resources,
        )
    try:
        for row in done.iter_rows():
            yield from json.loads(row["records"])
    except RayError as error:  # what goes wrong with a file is in its record
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ConfigurationError(f"The workers could not start or go on: {reason[0]}") from error


def _parts(tasks: Mapping[int, Task], files: int) -> list[dict[int, Task]]:
    """Parts of the work: videos, each by itself, and pictures, some `files` together."""
    videos, pictures = [], []
    for number, task in tasks.items():
        (videos if is_video(task.job.source) else pictures).append((number, task))
    return [dict(part) for part in (*split(videos, 1), *split(pictures, files))]


class _Worker:
    """An actor that holds the networks and does parts of the work from start to end, each on a thread of its own."""

    def __init__(self, folder: str, model: str, device: str, dtype: str, reconstruction: str):
        os.chdir(folder)  # paths may be relative to where the command was called
        self.pipe = load(model, device, dtype, reconstruction)
        self.videos = for_videos(self.pipe)
        self.networks = Lock()  # work on one group of files at a time

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        tasks, records = pickle.loads(row["tasks"]), []
        for group in gathered(tasks.values(), self.pipe.engine.mixed_batch_size):
            with self.networks:
                make(group, lambda file: self.videos if is_video(file) else self.pipe)
            records += [task.finish() for task in group]
        return {"records": json.dumps(list(zip(tasks, records, strict=True)))}

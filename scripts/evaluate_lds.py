"""Measure the identity sampler: does it copy training faces, miss some people, or sample shapes that do not match the identity,
or people who do not fit the conditions?

    python scripts/evaluate_lds.py STORE --validation-names FILE [--lds FOLDER] [--samples 1000]

STORE is the store of `diffdeid data prepare` that the LDS was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffdeid import DiffDeIDPipeline, LDSPipeline
from diffdeid.metrics.quality import frechet_distance
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.training.data import FaceStore
from diffdeid.training.fit_context import read_features, ridge
from diffdeid.training.prepare import SAME_PERSON
from diffdeid.training.train_lds import read_coefficients, read_vectors

PEOPLE = 200  # held-out faces that new people are drawn for


def nearest(rows: Tensor, others: Tensor) -> np.ndarray:
    """Cosine of each row to the most similar of the others."""
    return (rows @ others.T).max(1).values.numpy()


def explained(inputs: Tensor, outputs: Tensor, weights: Tensor) -> float:
    """Share of the variance of `outputs` that a linear map of `inputs` explains."""
    return 1 - ((outputs - inputs @ weights).var(0).sum() / outputs.var(0).sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--validation-names")
    parser.add_argument(
        "--lds", type=Path, default=Path("weights/diffdeid"), help="run folder of `diffdeid train lds`, or a whole release"
    )
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()

    store = FaceStore(arguments.store)
    seen, held_out = (read_vectors(store, names) for names in store.split(arguments.validation_names))
    if (arguments.lds / "unet").is_dir():
        pipeline = DiffDeIDPipeline.from_pretrained(arguments.lds).identity_sampler
    else:
        pipeline = LDSPipeline.from_pretrained(arguments.lds / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    sample = pipeline(arguments.samples, num_inference_steps=20, generator=torch.Generator().manual_seed(0))
    z, shape = sample.identity.float(), sample.shape.float()
    (z_seen, shape_seen), (z_new, shape_new) = (rows.split([128, 80], dim=1) for rows in (seen, held_out))

    for name, rows in (("samples", z), ("held-out faces", z_new)):
        near = nearest(rows, z_seen)
        print(
            f"nearest training face of {name:14}: cosine median {np.median(near):.3f}, 99 % {np.quantile(near, 0.99):.3f}, "
            f"largest {near.max():.3f}, above {SAME_PERSON}: {(near > SAME_PERSON).mean():.4f}"
        )
    order = torch.randperm(len(z_seen), generator=torch.Generator().manual_seed(0))
    count = min(len(z), len(z_seen) // 2)
    first, second = z_seen[order[:count]], z_seen[order[count : 2 * count]]
    usual = np.median(nearest(z_new, first))
    share = (nearest(z_new, z[:count]) > usual).mean()
    print(f"coverage: of the held-out faces {share:.3f} have a sample as near as half of them have a training face")
    distances = [frechet_distance(rows[:count].numpy(), second.numpy()) for rows in (z, first)]
    print("Fréchet distance of z to training faces: samples {:.4f}, other training faces {:.4f}".format(*distances))
    apart = torch.randperm(len(shape), generator=torch.Generator().manual_seed(1))  # what samplers of z and of α would give
    spread = shape_seen.std(0) * len(shape_seen[0]) ** 0.5  # z and α vary about equally much in this measure

    def together(z: Tensor, shape: Tensor) -> np.ndarray:
        return torch.cat([z, shape / spread], dim=1)[:count].numpy()

    real = together(second, shape_seen[order[count : 2 * count]])
    pairs = (z, shape), (z, shape[apart]), (first, shape_seen[order[:count]])
    distances = [frechet_distance(together(*pair), real) for pair in pairs]
    print("… of [z ; α]: samples {:.4f}, z and α of different samples {:.4f}, other training faces {:.4f}".format(*distances))
    alike = [(rows @ rows.T).fill_diagonal_(0).mean() for rows in (z, z_new)]
    print("mean cosine: between samples {:.3f}, between held-out faces {:.3f}".format(*alike))
    weights = ridge(z_seen, shape_seen, 1.0)
    told = [explained(rows, shapes, weights) for rows, shapes in ((z, shape), (z, shape[apart]), (z_new, shape_new))]
    print("variance of α told by z: samples {:.3f}, of different samples {:.3f}, held-out faces {:.3f}".format(*told))
    print(f"deviation of α: samples {shape.std(0).mean():.3f}, training faces {shape_seen.std(0).mean():.3f}")

    if names := pipeline.lds.config.attribute_names:
        told = judge(pipeline, pipeline.lds.conditions(attributes=pipeline.lds.attributes(z_new[:PEOPLE])), z_new[:PEOPLE])
        encoder = ContextEncoderModel.from_pretrained(arguments.lds, subfolder="context_encoder").float()
        shown = store.split(arguments.validation_names)[1][:PEOPLE]
        with torch.no_grad():
            context = encoder.read(read_features(store, shown, encoder, []))
        fitting = judge(
            pipeline, pipeline.lds.conditions(context, read_coefficients(store, shown, encoder.device)), z_new[:PEOPLE]
        )
        for name, by_attributes, by_k in zip(names, told, fitting, strict=True):
            print(
                f"{name}: correlation with the face's, drawn by attributes {by_attributes:.2f}, by what stays visible {by_k:.2f}"
            )


def judge(pipeline: LDSPipeline, conditions: Tensor, identity: Tensor) -> Tensor:
    """Correlation, by attribute, between faces `(n, 128)` and people drawn by the conditions of these faces."""
    generator, drawn, sampler = torch.Generator().manual_seed(1), [], pipeline.sampler
    with torch.no_grad():
        for row in conditions.split(1):
            (asked,) = sampler.expect([row], [generator])
            embedding, _ = sampler.sample(sampler.prepare_latents(1, generator), asked)
            drawn.append(pipeline.lds.attributes(embedding)[0])
    pairs = zip(torch.stack(drawn).T, pipeline.lds.attributes(identity).T, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


if __name__ == "__main__":
    main()

"""Linear probe: a classifier of wells on the pooled cells of a frozen encoder.

    python train_classifier.py model_path=latest dataloaders=simulated_cells

Every key is explained in configs/train_classifier.yaml.
"""

from functools import partial

from biomass import training
from biomass.config import Config, build, script
from biomass.experiment import Experiment, chosen_words, compose
from biomass.loader import BatchReader
from biomass.models import digest
from biomass.norms import Method, Statistics
from biomass.objectives import Classification
from biomass.screen import PLATE


def method_of(cfg: Config) -> Method:
    """Where batch norm takes its statistics from: what the published keys mean, and words in their place."""
    columns = training.sampler_columns(cfg.dataloaders.sampler)
    word, by = ("plate" if columns else "batch") if cfg.model_train_mode else "running", columns or PLATE
    method = Method("running", word, by, by).override(*chosen_words(cfg))
    return Method("running", method.eval, eval_by=method.eval_by, controls=method.controls)


@script("train_classifier")
def main(cfg: Config) -> float | None:
    """Encode the cells, train the probe, evaluate and save; returns the best value of the monitored metric."""
    data, stored, save_key = cfg.dataloaders, cfg.calibration, cfg.save_key
    experiment = Experiment.begin(cfg, "train_classifier", cfg.run_name or save_key)

    # the frozen encoder
    path = training.find_checkpoint(training.encoder_path(cfg.model_path, cfg.sup_model_path))
    network, trained, origin = training.load_network(path, cfg.model.key)
    encoder, width = training.probed_part(network.to(experiment.fabric.device), cfg.use_projs, path)

    # the cells, and where batch norm takes its statistics from
    cells = build(data.source)
    training.check_channels(trained, origin, cells, path)
    d_out = cfg.out_features if cfg.out_features is not None else len(cells.classes)
    evaluated = experiment.splits(cells, data.eval_splits, d_out, "out_features")
    method, splits = method_of(cfg), list(dict.fromkeys(["train", *evaluated]))
    _, statistics = method.statistics(cells)
    statistics.check(cells, *splits)
    groups, instances = cells.groups(method.eval_by), cells.groups(data.instance)
    training.check_instances(cells, instances, groups, splits)

    # what turns cells into a vector for each field of view: once, or again for every epoch where training augments
    standardize, augment = compose(cfg.transforms.eval), compose(cfg.transforms.get("train", cfg.transforms.eval))
    training.use_calibration(network.encoder, statistics, path, stored, cells, standardize, splits, cfg.other_data)
    profiler = training.Profiler(
        experiment.fabric,
        encoder,
        cells,
        splits,
        BatchReader(cells, groups, data.on_bad_image, instances),
        statistics,
        batch_size=cfg.encode_batch_size,
        pooler=cfg.pooler,
        normalize=cfg.normalize,
        num_workers=data.num_workers,
        seed=cfg.seed,
    )

    # the probe; what stands in the way is known before anything is encoded
    experiment.plan.check_monitor(evaluated, training.SplitEvaluation.measured)
    probe = training.build_probe(cfg.pooler, width, cfg.in_features, d_out, cfg.seed)
    batch_size, config = cfg.train_batch_size, cfg.to_dict() | {"encoder": origin.get("config", {})}
    about = {"architecture": {"pooler": cfg.pooler, "in_features": width, "d_out": d_out}, "config": config}
    probed = {"classes": [*cells.classes], "encoder": digest(encoder), "encoder_path": str(path)}
    like = profiler.batches_like(batch_size)
    about = experiment.settle(method_of, encoder, cells, like, evaluated, augment, **probed, **about)
    fields = profiler.profiles(splits, standardize)

    # profiles → batches; from here on the run writes
    batches = profiler.batches(fields.rows("train"), batch_size)
    again = None if augment == standardize else partial(profiler.profiles, ["train"], augment)
    loader = training.profile_loader(fields, batches, again)
    reader = BatchReader(fields, fields.plate_ids)
    eval_loaders = training.evaluation_loaders(experiment.fabric, fields, reader, evaluated, False, batch_size)
    optimized = experiment.optimize(probe, len(batches))
    nothing, plain = compose([]), Statistics("running", names=fields.plate_names)
    return experiment.train(
        optimized,
        loader=loader,
        transform=nothing,
        objective=Classification(accuracy=True),
        statistics=plain,
        skipped=profiler.skipped,
        evaluate=training.SplitEvaluation(fields, eval_loaders, nothing, plain) if eval_loaders else None,
        about=about,
    )


if __name__ == "__main__":
    main()

"""Linear probe: a classifier of wells on the pooled cells of a frozen encoder.

    python train_classifier.py model_path=latest dataloaders=simulated_cells

Every key is explained in configs/train_classifier.yaml.
"""

from pathlib import Path

import numpy as np

from biomass import training
from biomass.config import Config, build, run_name, script
from biomass.evaluation import profile_screen
from biomass.inference import Statistics, infer
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.models import digest
from biomass.objectives import Classification
from biomass.samplers import PlateBatches
from biomass.screen import PLATE
from biomass.transforms import Compose


@script("train_classifier")
def main(cfg: Config) -> float | None:
    """Encode every cell once, train the probe, evaluate and save; returns the best value of the monitored metric."""
    data, trainer = cfg.dataloaders, cfg.trainer
    save_key = cfg.save_key
    name = run_name(cfg.run_name or save_key, "train_classifier")
    fabric = training.make_fabric(cfg.device, trainer.precision, trainer.devices)
    checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
    resume = checkpoints.to_resume(cfg.resume)

    # the frozen encoder
    path = training.find_checkpoint(training.one_of(cfg.model_path, cfg.sup_model_path))
    network, trained, origin = training.load_network(path, cfg.model.key)
    encoder, width = training.frozen_part(network, cfg.use_projs, path)
    encoder.to(fabric.device)

    # the cells, each once: plate by plate, or mixed
    cells = build(data.source)
    training.check_channels(trained, origin, cells, path)
    columns = training.sampler_columns(data.sampler)
    groups, instances = cells.groups(columns or PLATE), cells.groups(data.instance)
    splits = list(dict.fromkeys(["train", *data.eval_splits]))
    training.check_instances(cells, instances, groups, splits)
    rows = np.sort(np.concatenate([cells.rows(split) for split in splits]))
    batches = PlateBatches(
        rows, groups[rows] if columns else None, batch_size=cfg.encode_batch_size, shuffle=not columns, seed=cfg.seed
    )
    reader = BatchReader(cells, groups, data.on_bad_image, instances)
    loader = Loader(reader, batches, data.num_workers, pin_memory=fabric.device.type == "cuda")
    names = cells.group_names(columns or PLATE)
    statistics = Statistics("batch" if cfg.model_train_mode else "running", columns is not None, "all", names)
    standardize = Compose([build(t) for t in cfg.transforms.eval])

    # cells → one vector for each field of view, once for all epochs; what stands in the way is known before
    d_out = cfg.out_features if cfg.out_features is not None else len(cells.classes)
    training.check_labels(cells, data.eval_splits, d_out, "out_features")
    probe = training.build_probe(cfg.pooler, width, cfg.in_features, d_out, cfg.seed)
    optimizer = training.adam(probe, cfg.learning_rate, cfg.weight_decay)
    plan = training.Schedule(
        cfg.num_epochs, trainer.clip, trainer.log_every, trainer.evaluate_every, trainer.max_steps, trainer.monitor
    )
    plan.check_monitor(data.eval_splits, training.SplitEvaluation.measured)
    batch_size, normalize, warmup = cfg.train_batch_size, cfg.normalize, cfg.num_warmup_epochs
    compiled, optimizer = training.set_up(fabric, probe, optimizer, trainer.compile)
    cfg.check_all_read()
    config = cfg.to_dict() | {"encoder": origin.get("config", {})}
    architecture = {"pooler": cfg.pooler, "in_features": width, "d_out": d_out}
    about = {"architecture": architecture, "config": config, "encoder": digest(encoder)}
    training.check_resume(resume, about)
    skipped = SkippedImages(cells)
    outputs = infer(fabric, encoder, loader, standardize, statistics, skipped)
    fields = profile_screen(cells, instances, outputs, cfg.pooler, normalize)

    # from here on the run writes
    reader = BatchReader(fields, fields.plate_ids)
    shuffled = PlateBatches(fields.rows("train"), batch_size=batch_size, seed=cfg.seed)
    loader = Loader(reader, shuffled)
    eval_loaders = training.evaluation_loaders(fabric, fields, reader, data.eval_splits, False, batch_size)
    decay = training.warmup_cosine(optimizer, warmup * len(shuffled), cfg.num_epochs * len(shuffled))
    logger = training.RunLogger(Path("runs") / name, config, resume, enabled=fabric.is_global_zero)
    nothing, frozen = Compose([]), Statistics("running", names=fields.plate_names)
    evaluate = training.SplitEvaluation(
        fabric, compiled, fields, eval_loaders, nothing, frozen, logger, SkippedImages(fields)
    )
    run = training.Training(
        fabric,
        compiled,
        optimizer,
        decay,
        loader,
        nothing,
        Classification(True),
        frozen,
        logger,
        checkpoints,
        skipped,
        about,
    )
    with logger:
        return training.fit(run, plan, evaluate if eval_loaders else None, resume, cfg.seed).best


if __name__ == "__main__":
    main()

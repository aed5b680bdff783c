"""Self-supervised pre-training on single cells: SimCLR and MinCLR, any number of views, with or without BEN.

    python train_simclr.py dataloaders=simulated_cells dataloaders.mode=random dataloaders.sampler=plate

Every key is explained in configs/train_simclr.yaml.
"""

from pathlib import Path

from biomass import training
from biomass.config import Config, build, run_name, script
from biomass.inference import Statistics
from biomass.loader import BatchReader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.objectives import Contrastive
from biomass.samplers import check_views
from biomass.screen import PLATE
from biomass.transforms import Compose


@script("train_simclr")
def main(cfg: Config) -> float | None:
    """Train, validate and save; returns the best value of the monitored metric."""
    data, trainer = cfg.dataloaders, cfg.trainer
    check_views(data.mode, data.num_img, cfg.num_views)
    name = run_name(cfg.run_name, "train_simclr")
    fabric = training.make_fabric(cfg.device, trainer.precision, trainer.devices)
    checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
    resume = checkpoints.to_resume(cfg.resume)

    # the cells, the plates they stand on, and where batch norm takes its statistics from
    screen = build(data.source)
    columns = training.sampler_columns(data.sampler)
    by_group, names = columns is not None, screen.group_names(columns or PLATE)
    groups, instances = screen.groups(columns or PLATE), screen.groups(data.instance)
    training.check_instances(screen, instances, groups, ["train", *data.eval_splits])
    reader = BatchReader(screen, groups, data.on_bad_image, instances)
    in_training = Statistics("batch", by_group, "all", names)
    at_inference = Statistics("batch" if by_group else "running", by_group, "all", names)

    # fields of view → views → batches of raw images
    loader, *others = (
        training.view_loader(
            fabric,
            screen,
            reader,
            split,
            by_group=by_group,
            mode=data.mode,
            num_img=data.num_img,
            batch_size=cfg.train_batch_size,
            max_groups=data.num_plates_per_batch if split == "train" else 1,
            parts=data.num_plate_parts,
            shuffle=split == "train",
            seed=cfg.seed,
            num_workers=data.num_workers,
        )
        for split in ("train", *data.eval_splits)
    )
    eval_loaders = dict(zip(data.eval_splits, others, strict=True))
    training.check_negatives({"train": loader, **eval_loaders})
    plan = training.Schedule(
        cfg.num_epochs, trainer.clip, trainer.log_every, trainer.evaluate_every, trainer.max_steps, trainer.monitor
    )
    plan.check_monitor(eval_loaders, training.ContrastiveEvaluation.measured)

    # network, optimizer, augmentation
    architecture = Architecture(cfg.model.key, len(screen.pixels.channels), tuple(cfg.model.projector))
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    if cfg.model_path is not None:
        training.load_encoder(network, training.find_checkpoint(cfg.model_path), cfg.model.key)
    optimizer = training.adam(network, cfg.learning_rate, cfg.weight_decay)
    steps = len(loader)
    decay = training.warmup_cosine(optimizer, cfg.num_warmup_epochs * steps, cfg.num_epochs * steps)
    augment = Compose([build(t) for t in cfg.transforms.train])
    objective = Contrastive(cfg.temperature, cfg.gather)
    compiled, optimizer = training.set_up(fabric, network, optimizer, trainer.compile)
    cfg.check_all_read()
    about = {"architecture": architecture.to_dict(), "channels": list(screen.pixels.channels), "config": cfg.to_dict()}
    training.check_resume(resume, about)

    # from here on the run writes
    logger = training.RunLogger(Path("runs") / name, cfg.to_dict(), resume, enabled=fabric.is_global_zero)
    skipped = SkippedImages(screen)
    evaluate = training.ContrastiveEvaluation(
        fabric, compiled, eval_loaders, augment, at_inference, cfg.temperature, skipped, cfg.seed
    )
    run = training.Training(
        fabric, compiled, optimizer, decay, loader, augment, objective, in_training, logger, checkpoints, skipped, about
    )
    with logger:
        return training.fit(run, plan, evaluate if eval_loaders else None, resume, cfg.seed).best


if __name__ == "__main__":
    main()

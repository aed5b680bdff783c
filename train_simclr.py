"""Self-supervised pre-training on single cells: SimCLR and MinCLR, any number of views, with or without BEN.

    python train_simclr.py dataloaders=simulated_cells dataloaders.mode=random dataloaders.sampler=plate

Every key is explained in configs/train_simclr.yaml.
"""

from biomass import training
from biomass.config import Config, build, script
from biomass.experiment import Experiment, chosen_words, compose
from biomass.loader import BatchReader, SkippedImages
from biomass.models import build_network
from biomass.norms import Method
from biomass.objectives import Contrastive
from biomass.samplers import check_views
from biomass.screen import PLATE


def method_of(cfg: Config) -> Method:
    """Where batch norm takes its statistics from: what the published keys mean, and words in their place."""
    columns = training.sampler_columns(cfg.dataloaders.sampler)
    word, by = "plate" if columns else "running", columns or PLATE
    return Method(
        word, word, by, by, cfg.dataloaders.num_plates_per_batch, cfg.dataloaders.get("num_controls")
    ).override(*chosen_words(cfg))


@script("train_simclr")
def main(cfg: Config) -> float | None:
    """Train, validate and save; returns the best value of the monitored metric."""
    data = cfg.dataloaders
    check_views(data.mode, data.num_img, cfg.num_views)
    experiment = Experiment.begin(cfg, "train_simclr", cfg.run_name)

    # the cells, and where batch norm takes its statistics from
    screen, method = build(data.source), method_of(cfg)
    in_training, at_inference = method.statistics(screen)
    splits = experiment.splits(screen, data.eval_splits)
    at_inference.check(screen, *splits)
    groups, instances = screen.groups(method.train_by), screen.groups(data.instance)
    training.check_instances(screen, instances, groups, ["train", *splits])

    # fields of view → views → batches of raw images
    loader, *others = (
        training.view_loader(
            experiment.fabric,
            screen,
            BatchReader(screen, groups, data.on_bad_image, instances),
            split,
            by_group=method.batches_by is not None if split == "train" else at_inference.by_group,
            mode=data.mode,
            num_img=data.num_img,
            batch_size=cfg.train_batch_size,
            max_groups=method.max_groups if split == "train" else 1,
            parts=data.num_plate_parts,
            num_controls=method.num_controls or 0 if split == "train" else 0,
            controls=method.controls,
            shuffle=split == "train",
            seed=cfg.seed,
            num_workers=data.num_workers,
        )
        for split in ("train", *splits)
    )
    eval_loaders = dict(zip(splits, others, strict=True))
    training.check_negatives({"train": loader, **eval_loaders})
    experiment.plan.check_monitor(eval_loaders, training.LossEvaluation.measured)

    # network, optimizer, augmentation, objective
    architecture = experiment.architecture(screen, cfg.model.projector)
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    if cfg.model_path is not None:
        training.load_encoder(network, training.find_checkpoint(cfg.model_path), cfg.model.key)
    optimized = experiment.optimize(network, len(loader))
    augment, objective = compose(cfg.transforms.train), Contrastive(cfg.temperature, cfg.gather)
    evaluate = training.LossEvaluation(objective, eval_loaders, augment, at_inference, cfg.seed)
    about = {"architecture": architecture.to_dict()}
    about = experiment.settle(method_of, network, screen, loader.batches, splits, augment, **about)

    # from here on the run writes
    return experiment.train(
        optimized,
        loader=loader,
        transform=augment,
        objective=objective,
        statistics=in_training,
        skipped=SkippedImages(screen),
        evaluate=evaluate if eval_loaders else None,
        about=about,
    )


if __name__ == "__main__":
    main()

"""The default of every script is the published experiment, key by key."""

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CELL_TRANSFORMS = ["RandomRotate90", "RandomHorizontalFlip", "RandomResizedCrop", "GaussianBlur", "Standardize"]
FIELD_TRANSFORMS = ["RandomRotate90", "RandomHorizontalFlip", "Standardize"]

PUBLISHED = [
    # supervised, RxRx1-WILDS (Lin & Lu 2022): batches of one plate, whole plates at inference
    ("train_erm", "dataloaders.source._target_", "biomass.datasets.rxrx1.load_rxrx1"),
    ("train_erm", "dataloaders.train_groupby", ["experiment", "plate"]),
    ("train_erm", "dataloaders.max_groups", 1),
    ("train_erm", "dataloaders.eval_plate_sampler", True),
    ("train_erm", "use_train_at_eval", True),
    ("train_erm", "train_batch_size", 75),
    ("train_erm", "eval_batch_size", None),
    ("train_erm", "learning_rate", 1e-3),
    ("train_erm", "weight_decay", 1e-5),
    ("train_erm", "num_epochs", 90),
    ("train_erm", "num_warmup_epochs", 10),
    ("train_erm", "compute_train_acc", True),
    ("train_erm", "save_model", True),
    ("train_erm", "model.key", "resnet50"),
    ("train_erm", "model.d_out", 1139),
    ("train_erm", "model.pretrained", True),
    ("train_erm", "transforms.train", FIELD_TRANSFORMS),
    # self-supervised: vanilla SimCLR with two views
    ("train_simclr", "dataloaders.source._target_", "biomass.datasets.rxrx1_cells.load_rxrx1_cells"),
    ("train_simclr", "dataloaders.sampler", "random"),
    ("train_simclr", "dataloaders.mode", "random_single"),
    ("train_simclr", "dataloaders.num_img", 2),
    ("train_simclr", "num_views", 2),
    ("train_simclr", "temperature", 0.05),
    ("train_simclr", "train_batch_size", 300),
    ("train_simclr", "learning_rate", 1e-3),
    ("train_simclr", "num_epochs", 500),
    ("train_simclr", "num_warmup_epochs", 50),
    ("train_simclr", "model.key", "resnet50"),
    ("train_simclr", "model.pretrained", True),
    ("train_simclr", "model.projector", [2048, 128]),
    ("train_simclr", "model_path", None),
    ("train_simclr", "dataloaders.img_dir", None),
    ("train_simclr", "transforms.train", CELL_TRANSFORMS),
    ("train_simclr", "transforms.train.2.size", 48),
    ("train_simclr", "transforms.train.3.kernel_size", 25),
    ("train_simclr", "transforms.train.3.sigma", [0.1, 0.5]),
    # the linear probe
    ("train_classifier", "dataloaders.sampler", "random"),
    ("train_classifier", "model_train_mode", False),
    ("train_classifier", "train_batch_size", 300),
    ("train_classifier", "num_epochs", 30),
    ("train_classifier", "learning_rate", 0.1),
    ("train_classifier", "trainer.clip", 5.0),
    ("train_classifier", "pooler", "mean"),
    ("train_classifier", "normalize", True),
    ("train_classifier", "use_projs", False),
    ("train_classifier", "transforms.train", FIELD_TRANSFORMS),
    ("train_classifier", "transforms.eval", ["Standardize"]),
    # supervised, single cells
    ("train_supervised_cell", "dataloaders.sampler", "random"),
    ("train_supervised_cell", "dataloaders.num_img", 5),
    ("train_supervised_cell", "model.key", "resnet50"),
    ("train_supervised_cell", "model.pretrained", True),
    ("train_supervised_cell", "num_epochs", 500),
    ("train_supervised_cell", "num_warmup_epochs", 50),
    ("train_supervised_cell", "learning_rate", 1e-3),
]

VISIBLE = {
    "train_erm": [
        "dataloaders.train_groupby",
        "dataloaders.max_groups",
        "dataloaders.eval_plate_sampler",
        "dataloaders.eval_splits",
        "train_batch_size",
        "eval_batch_size",
        "use_train_at_eval",
        "learning_rate",
        "weight_decay",
        "num_epochs",
        "num_warmup_epochs",
        "device",
        "save_model",
        "compute_train_acc",
        "model.key",
        "model.d_out",
        "model.pretrained",
    ],
    "train_simclr": [
        "dataloaders.img_dir",
        "dataloaders.summary_file",
        "dataloaders.metadata_file",
        "dataloaders.sampler",
        "dataloaders.mode",
        "dataloaders.num_img",
        "num_views",
        "temperature",
        "model_path",
        "model.projector",
        "model.pretrained",
    ],
    "train_classifier": [
        "model_path",
        "dataloaders.sampler",
        "dataloaders.img_dir",
        "model_train_mode",
        "pooler",
        "use_projs",
        "normalize",
        "in_features",
        "out_features",
        "save_key",
    ],
    "train_supervised_cell": ["dataloaders.img_dir", "dataloaders.sampler", "dataloaders.num_img"],
}  # what a reader of the published description looks for in the script's own file


def composed(script, *overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(script, list(overrides))


@pytest.mark.parametrize(("script", "key", "value"), PUBLISHED)
def test_the_default_is_the_published_experiment(script, key, value):
    found = OmegaConf.select(composed(script), key, throw_on_missing=True)
    if key in ("transforms.train", "transforms.eval"):
        found = [str(node["_target_"]).rpartition(".")[2] for node in found]
    assert found == value


@pytest.mark.parametrize(("script", "key"), [(script, key) for script, keys in VISIBLE.items() for key in keys])
def test_published_keys_stand_in_the_file_of_their_script(script, key):
    own = OmegaConf.load(ROOT / "configs" / f"{script}.yaml")
    *sections, last = key.split(".")
    for section in sections:
        own = own[section]
    assert last in own

"""Well profiles as AnnData, for the tools of single-cell analysis (scanpy and its relatives)."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from biomass.atomic import whole_file
from biomass.errors import ConfigError
from biomass.evaluation.tables import METADATA


def check_anndata() -> None:
    """Make sure that AnnData files can be written.

    Raises:
        ConfigError: the package is not installed, or cannot be imported.
    """
    try:
        import anndata  # noqa: F401  # an extra
    except ImportError as error:
        raise ConfigError(
            f"AnnData files need the package anndata, which cannot be imported ({error}); "
            "pip install 'biomass[anndata]', or do without",
            "anndata",
        ) from error


def write_h5ad(profiles: pd.DataFrame, file: Path) -> None:
    """Write a profile table as AnnData: ``X`` are the features, ``obs`` the columns ``Metadata_*``.

    Args:
        profiles: of wells.
        file: written whole or not at all.

    Raises:
        ConfigError: the package is not installed, or the file cannot be written.
    """
    check_anndata()
    import h5py
    from anndata import AnnData
    from anndata.io import write_elem

    about = [column for column in profiles.columns if column.startswith(METADATA)]
    features = profiles.drop(columns=about)
    obs = profiles[about].set_axis([str(row) for row in range(len(profiles))])
    obs = obs.astype(dict.fromkeys(obs.select_dtypes(object), "category"))
    made = AnnData(features.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=features.columns))
    content = BytesIO()  # HDF5 ends the process where it cannot close a file on a full disk
    with h5py.File(content, "w") as h5:
        write_elem(h5, "/", made)
    with whole_file(file) as part:
        part.write_bytes(content.getbuffer())

"""A model on patches and one of Stable Diffusion's layout, at tiny width."""

import pytest
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion_pipeline


@pytest.fixture(scope="module")
def patch_pipeline():
    return tiny_patch_pipeline()


@pytest.fixture(scope="module")
def sd_pipeline(tmp_path_factory):
    return tiny_stable_diffusion_pipeline(tmp_path_factory.mktemp("sd"))


@pytest.fixture(params=["patch_pipeline", "sd_pipeline"])
def pipeline(request):
    return request.getfixturevalue(request.param)

"""A model on patches and one of Stable Diffusion's layout, at tiny width."""

import pytest
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion_pipeline


@pytest.fixture(scope="module")
def patch():
    return tiny_patch_pipeline()


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    return tiny_stable_diffusion_pipeline(tmp_path_factory.mktemp("sd"))


@pytest.fixture(params=["patch", "latent"])
def pipeline(request):
    return request.getfixturevalue(request.param)

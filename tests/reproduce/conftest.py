import pytest
from tiny_study import prepare_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folder of the data that tiny studies are trained on; none changes it."""
    return prepare_data(tmp_path_factory.mktemp("data"))

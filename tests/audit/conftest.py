from tests.datasets.conftest import cache, data_base, make_image, qa, six_records, write_data  # noqa: F401

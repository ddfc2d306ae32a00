import pytest

from repstitch.bulk.settings import JobSettings, merged, read_settings
from repstitch.errors import InputError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "beside"}, "`layout` must be column or side"),
        ({"workers": 0}, "`workers` must be from 1 to 64"),
        ({"workers": 2.5}, "`workers` must be a whole number"),
        ({"workers": True}, "`workers` must be a whole number"),
        ({"index_recall": 0}, "`index_recall` must be above 0"),
        ({"index_recall": 1.5}, "`index_recall` must be above 0 and at most 1"),
        ({"max_rest": -1}, "`max_rest` must be at least 0"),
        ({"max_pause": 0.0}, "`max_pause` must be above 0"),
        ({"max_rows_per_second": -1}, "`max_rows_per_second` must be above 0"),
        ({"price_per_million": -0.1}, "`price_per_million` must be at least 0"),
        ({"new_vector": 3}, "`new_vector` must be text"),
        ({"keep_names": 1}, "`keep_names` must be true or false"),
        ({"keep_names": True, "swap_equal": True}, "`keep_names` must not be set together"),
        ({"qrels": "q.tsv"}, "`qrels` must be passed with `queries`"),
        ({"old_queries": "q.parquet"}, "`old_queries` must be passed with `queries`"),
    ],
)
def test_an_invalid_setting_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JobSettings(**settings)


def test_the_command_line_replaces_settings_of_the_file(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('address = "lancedb://db?table=t"\nstitcher = "s"\nworkers = 2\nmax_pause = 1\nview = "v"\n')
    values = read_settings(file)
    assert (values["address"], values["stitcher"]) == ("lancedb://db?table=t", "s")
    assert merged(values, {"workers": 3, "view": None}) == JobSettings(workers=3, max_pause=1, view="v")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("workers = ", "cannot be read as TOML"),
        ("worker = 2", "unknown key 'worker'; did you mean workers"),
        ("stitcher = 2", "`stitcher` in .* must be text"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, content, message):
    file = tmp_path / "job.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_settings(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="`job`: there is no file"):
        read_settings(tmp_path / "none.toml")

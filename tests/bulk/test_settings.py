import pytest

from repstitch.bulk.settings import JobSettings, merged, read_settings
from repstitch.errors import InputError

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "beside"}, "`layout` must be column or side"),
        ({"workers": 0}, "`workers` must be from 1 to 64"),
        ({"workers": 2.5}, "`workers` must be a whole number"),
        ({"workers": True}, "`workers` must be a whole number"),
        *(({"index_recall": value}, "`index_recall` must be from 0.01 to 1; got") for value in (0, 1.5, NAN)),
        *(({"max_rest": value}, r"`max_rest` must be from 0 to 1,000,000,000; got") for value in (-1, 10**400)),
        *(({"max_pause": value}, "`max_pause` must be from 0.001 to 3,600; got") for value in (0.0, 1e300, INF, NAN)),
        *(
            ({"max_rows_per_second": value}, r"`max_rows_per_second` must be from 0.01 to 1,000,000,000; got")
            for value in (-1, 1e-300, INF, NAN)
        ),
        *(
            ({"price_per_million": value}, r"`price_per_million` must be from 0 to 1,000,000; got")
            for value in (-0.1, INF, NAN)
        ),
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

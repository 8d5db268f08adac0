from telemetry.disk import DiskReader


def test_the_free_space_is_read(tmp_path):
    assert DiskReader(tmp_path).read()["disk_free_bytes"].value > 0

import pytest

from telemetry.host import HostReader


def stat(user, idle, iowait=0, steal=0):
    # The guest's time, here all of it, is part of the user time.
    return f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} {user} 0\ncpu0 1 2 3 4 5 6 7 8 9 10"


def test_utilization_is_the_busy_share_between_two_reads(plant):
    root = plant({"proc/stat": stat(user=5000, idle=5000)})
    reader = HostReader(root)
    first = reader.read()["cpu_utilization_ratio"]
    assert (first.value, first.reason) == (None, "first sample")

    plant({"proc/stat": stat(user=5020, idle=5060, iowait=10, steal=10)})
    assert reader.read()["cpu_utilization_ratio"].value == pytest.approx(0.3)
    plant({"proc/stat": stat(user=5120, idle=5060, iowait=10, steal=10)})
    assert reader.read()["cpu_utilization_ratio"].value == 1.0


def test_utilization_is_missing_when_no_tick_passed(plant):
    reader = HostReader(plant({"proc/stat": stat(user=1, idle=1)}))
    reader.read()
    assert reader.read()["cpu_utilization_ratio"].value is None


def test_two_readers_do_not_share_their_last_values(plant):
    root = plant({"proc/stat": stat(user=0, idle=0)})
    one, other = HostReader(root), HostReader(root)
    one.read()
    plant({"proc/stat": stat(user=10, idle=10)})
    assert one.read()["cpu_utilization_ratio"].value == 0.5
    assert other.read()["cpu_utilization_ratio"].value is None


def test_load_and_frequency_come_from_the_tree(plant):
    cpufreq = "sys/devices/system/cpu/cpufreq"
    root = plant(
        {
            "proc/loadavg": "1.50 0.80 0.40 2/300 4242",
            f"{cpufreq}/policy0/scaling_cur_freq": "2000000",
            f"{cpufreq}/policy1/scaling_cur_freq": "3000000",
        }
    )
    readings = HostReader(root).read()
    assert readings["load_1m"].value == 1.5
    assert readings["load_1m"].source == "/proc/loadavg"
    assert readings["cpu_frequency_hertz"].value == 2.5e9


def test_without_proc_psutil_answers_and_no_frequency_is_made_up(tmp_path):
    reader = HostReader(tmp_path)
    first = reader.read()
    assert first["cpu_utilization_ratio"].source == "psutil"
    assert first["cpu_utilization_ratio"].value is None
    assert first["load_1m"].source == "psutil"
    assert first["cpu_frequency_hertz"].reason == "no cpufreq"
    assert first["process_resident_bytes"].value > 1e6

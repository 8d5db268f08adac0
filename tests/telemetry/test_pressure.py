from telemetry.pressure import PressureReader


def psi(some, full):
    return (
        f"some avg10={some} avg60=90.00 avg300=90.00 total=1\n"
        f"full avg10={full} avg60=0.00 avg300=0.00 total=1"
    )


HOST = {"proc/pressure/cpu": psi("40.00", "1.00"), "proc/pressure/memory": psi("2.50", "1.00")}


def read(root):
    readings = PressureReader(root).read()
    return {name: (reading.value, reading.source) for name, reading in readings.items()}


def test_host_pressure_is_the_short_average_of_some(plant):
    assert read(plant(HOST)) == {
        "cpu_pressure_ratio": (0.4, "/proc/pressure/cpu"),
        "memory_pressure_ratio": (0.025, "/proc/pressure/memory"),
    }


def test_the_own_group_comes_first_and_each_resource_falls_back_alone(plant):
    own = {"proc/self/cgroup": "0::/app", "sys/fs/cgroup/app/cpu.pressure": psi("75.00", "0.00")}
    assert read(plant(HOST | own)) == {
        "cpu_pressure_ratio": (0.75, "cgroup-v2:/app"),
        "memory_pressure_ratio": (0.025, "/proc/pressure/memory"),
    }


def test_hybrid_reads_the_v2_tree(plant):
    root = plant(
        {
            "proc/self/cgroup": "4:cpu:/app\n0::/app",
            "sys/fs/cgroup/cpu/app/cpu.shares": "1024",
            "sys/fs/cgroup/unified/app/cpu.pressure": psi("10.00", "0.00"),
        }
    )
    assert read(root)["cpu_pressure_ratio"] == (0.1, "cgroup-v2:/app")


def test_absent_pressure_is_missing(tmp_path):
    for reading in PressureReader(tmp_path).read().values():
        assert (reading.value, reading.reason) == (None, "psi not available")

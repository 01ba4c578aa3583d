#!/usr/bin/env python3
"""Puts the CPU part of libtorch 2.11.0 into DIR: headers, libtorch_cpu.so and the four libraries it needs, from pinned wheels.

    python3 libtorch.py DIR

The wheels hold a CUDA build; without libtorch_cuda.so nothing of CUDA is linked. `libtorch.so` becomes a linker script."""
import os, shutil, subprocess, sys, tempfile, zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARIES = ("libtorch_cpu.so", "libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp")
# One wheel for every Python 3 with pip: the libraries inside do not depend on the interpreter.
WHEEL = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none", "--only-binary=:all:",
         "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_25_x86_64",
         "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"]


def download(into):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes",
               "--dest", into, "-r", os.path.join(HERE, "libtorch-cpu.txt"), *WHEEL]
    if subprocess.call([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        sys.exit("setup: python3 has no pip: install it (Debian: apt-get install python3-pip)")
    if subprocess.call(command):
        sys.exit("libtorch: it could not be downloaded (543 MB from the Python package index). Is there a network? "
                 "Behind a mirror set PIP_INDEX_URL. A folder with the wheels works too: PIP_FIND_LINKS=DIR PIP_NO_INDEX=1.")


def target(name):
    """Where a wheel's member goes below DIR, or None."""
    base = os.path.basename(name)
    if name.startswith("torch/include/") and base:
        return name[len("torch/"):]
    for library in LIBRARIES:
        if base == library:
            return "lib/" + base
        if library == "libgomp" and base.startswith("libgomp"):
            return "lib/libgomp.so.1"
    return None


def unpack(wheels, into):
    for wheel in sorted(os.listdir(wheels)):
        with zipfile.ZipFile(os.path.join(wheels, wheel)) as archive:
            for member in archive.namelist():
                place = target(member)
                if place is None:
                    continue
                path = os.path.join(into, place)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(member) as source, open(path, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    with open(os.path.join(into, "lib", "libtorch.so"), "w") as script:
        script.write("INPUT(-ltorch_cpu)\n")
    missing = [l for l in LIBRARIES if not any(f.startswith(l) for f in os.listdir(os.path.join(into, "lib")))]
    if missing:
        sys.exit(f"setup: the wheels hold no {', '.join(missing)}")


def main(into):
    if os.path.exists(os.path.join(into, "build-version")):
        return
    parent = os.path.dirname(into)
    os.makedirs(parent, exist_ok=True)
    print(f"libtorch 2.11.0 (CPU) -> {into}", flush=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        wheels, tree = os.path.join(scratch, "wheels"), os.path.join(scratch, "tree")
        download(wheels)
        print("setup: unpacking", flush=True)
        unpack(wheels, tree)
        with open(os.path.join(tree, "build-version"), "w") as version:
            version.write("2.11.0\n")
        shutil.rmtree(into, ignore_errors=True)
        os.rename(tree, into)  # whole or not at all


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))

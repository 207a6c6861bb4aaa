"""Tags of Dagster runs that tell other parts of this project what a run is for."""

RECIPE = "ft_pipeline/recipe"  # dagster.yaml: one refresh of a recipe at a time
# What started the run: `new_data` or `schedule`; absent where a person did.
STARTED_BY = "ft_pipeline/started_by"
NEW_DATA, SCHEDULE = "new_data", "schedule"
# Whether the run asks upstream for newer revisions before it builds: `yes` or `no`.
ASK_UPSTREAM = "ft_pipeline/ask_upstream"
REVISION = "ft_pipeline/revision"
# Of runs that nobody watches: begun again where their process was killed (dagster.yaml). All steps:
# what the store has is reused, and what is new upstream meanwhile is built at once.
BEGUN_AGAIN = {"dagster/max_retries": "2", "dagster/retry_strategy": "ALL_STEPS"}

"""`python -m ft_pipeline.cli`: the command `ft-pipeline`, where no console script is installed."""

from ft_pipeline.cli.main import main

if __name__ == "__main__":
    main()

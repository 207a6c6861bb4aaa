"""README and docs/: short enough, every link leads somewhere, and what they show is valid."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pymdownx.slugs import slugify

from ft_pipeline_tests.conftest import ROOT, TinyProject

MOST_WORDS = 900  # of the README
TESTS = ROOT / "ft_pipeline_tests"
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
EMPTY_BLOCK = re.compile(r"<!-- fill:(\w+) -->\s*<!-- /fill -->")
# What a browser loads for a page by itself.
LOADED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\ssrc=[^>]*>"
    r'|<link\b[^>]*\brel="?(?:stylesheet|icon|preconnect|preload)\b[^>]*>'
)


def read_readme() -> str:
    return README.read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_blocks_are_filled() -> None:
    assert len(read_readme().split()) <= MOST_WORDS
    for page in (README, ROOT / "benchmarks/README.md"):
        text = page.read_text(encoding="utf-8")
        assert "<!-- fill:" in text
        assert EMPTY_BLOCK.findall(text) == [], f"{page}: `make readme` fills them"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"[\w/]*\btest_\w+\.py", page.read_text(encoding="utf-8")))
    names = [f"/{file.relative_to(ROOT)}" for file in TESTS.rglob("test_*.py")]
    lost = {name for name in named if not any(n.endswith(f"/{name.strip('/')}") for n in names)}
    assert lost == set()


def test_every_guarantee_has_a_test() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs/guarantees.md").read_text(), re.M)
    claims = {claim: proof for claim, proof in rows if claim not in ("claim", "---")}
    assert len(claims) >= 30
    for claim, proof in claims.items():
        assert re.search(r"\]\(\.\./ft_pipeline_tests/[\w/]*test_\w+\.py\)", proof), claim


def list_anchors(page: Path) -> list[str]:
    slug = slugify(case="lower")  # the site's, and GitHub's
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [slug(heading, "-") for heading in headings]


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", read_readme())
    assert len(links) > 20
    for file, anchor in links:
        assert (ROOT / file).is_file(), file
        assert not anchor or anchor in list_anchors(ROOT / file), f"{file}#{anchor}"


@pytest.mark.slow
def test_the_recipe_of_the_readme_is_valid_and_builds(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    recipe, source = re.findall(r"```yaml\n(.*?)```", read_readme(), re.DOTALL)
    assert len(recipe.splitlines()) == 15
    project = fresh_project.copy_to(tmp_path / "project")
    (project.root / "recipes/support.yaml").write_text(recipe, encoding="utf-8")
    with (project.root / "sources.yaml").open("a", encoding="utf-8") as sources:
        sources.write(f"\n{source}")
    (project.root / "data/tickets").mkdir()
    rows = "".join(f"How do I reset device {n}?,Hold button {n} for a second.\n" for n in range(40))
    (project.root / "data/tickets/one.csv").write_text(f"question,answer\n{rows}", "utf-8")

    checked = project.run("ft-pipeline", "recipe", "check", "support")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "valid" in checked.stdout
    outcomes = project.build("--recipe", "support", "--to", "train_set")
    assert outcomes["support/train_set"] == "built"


def build_site(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict")
    places = ("--config-file", str(config), "--site-dir", str(site))
    return subprocess.run(command + places, capture_output=True, text=True, check=False)


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build_site(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40  # with those that show a file
    for page in pages:
        tags = LOADED.findall(page.read_text(encoding="utf-8"))
        assert len(tags) > 3
        assert [tag for tag in tags if "//" in tag] == [], page
    # A search from the disk has no server to fetch an index from: it is a script.
    assert (tmp_path / "site/search/search_index.js").is_file()


def test_a_dead_link_fails_the_site(tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "mkdocs.yml", "site"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy2(ROOT / "mkdocs.yml", tmp_path)
    dead = ("gone.md", "training.md#no-such-heading", "../recipes/gone.yaml", "/training.md")
    with (tmp_path / "docs/store.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n[a dead link]({link})\n" for link in dead)
    done = build_site(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    for link in dead:
        assert f"'{link}'" in done.stdout + done.stderr
    assert f"{len(dead)} warnings" in done.stdout + done.stderr


def test_the_tree_of_the_architecture_is_the_real_one() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^## The tree\n+```\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"(?:^|  )([\w.-]+(?:/[\w.-]*)*)(?=  |$)", tree, re.MULTILINE))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    ours = subprocess.run(
        ("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    tops = {file.partition("/")[0] for file in ours} - {".gitignore", ".pre-commit-config.yaml"}
    assert tops - {name.partition("/")[0] for name in named} == set()


def test_the_table_of_packages_is_the_real_one() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE))
    package = ROOT / "ft_pipeline"
    assert named == {file.parent.name for file in package.glob("*/__init__.py")}

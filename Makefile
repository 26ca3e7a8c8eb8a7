# `make` alone lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# conmond and the tests that load programs into the kernel need root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Left behind by a run as root, these would be in the way of the next run without.
NO_TRACES := env PYTHONDONTWRITEBYTECODE=1

.PHONY: help run test test-vm lint bench accuracy install uninstall deb wheel clean setup-run setup-test setup-vm

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup-run ## install what is missing, then watch connections until Ctrl-C; ARGS="--json" goes to conmond
	@exec $(SUDO) .venv/bin/conmond $(ARGS)

test: setup-test ## install what is missing, then every test this machine can run; ARGS goes to pytest
	@exec $(SUDO) $(NO_TRACES) $(PYTHON) -m pytest -p no:cacheprovider -ra --require auto $(ARGS)

lint: setup-test ## ruff, mypy --strict, clang-format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy monitor conmon $(wildcard bench)
	@.venv/bin/clang-format --dry-run -Werror bpf/*.h bpf/*.c

test-vm: setup-vm ## conmond as a service of Debian's systemd, on kernels 6.1 and 7, in virtual machines
	@exec $(SUDO) $(NO_TRACES) $(PYTHON) -m pytest -p no:cacheprovider -ra --require vm tests/vm $(ARGS)

bench: setup-test ## what conmond costs on this machine
	@exec $(SUDO) $(NO_TRACES) $(PYTHON) -m bench $(ARGS)

accuracy: setup-test ## docs/accuracy.md: each field of many real programs against the truth
	@exec $(SUDO) $(NO_TRACES) $(PYTHON) -m tests.accuracy $(ARGS)

# Links, unit and man pages go below it; conmond itself always into /opt/conmond.
PREFIX := /usr/local
# Into an image, which needs no root: make install DESTDIR=...
INSTALL_SUDO := $(if $(DESTDIR),,$(SUDO))

install: setup-run ## into /opt/conmond, with links in /usr/local/bin and a systemd unit
	@packaging/build build/install $(PREFIX) $(PREFIX)/share/zsh/site-functions
	@$(INSTALL_SUDO) packaging/install build/install $(PREFIX) $(PREFIX)/share/zsh/site-functions $(DESTDIR)

uninstall: ## remove it; configuration and history stay unless PURGE=1
	@$(INSTALL_SUDO) packaging/uninstall "$(DESTDIR)" "$(PURGE)"

deb: setup-run ## dist/conmond_VERSION_ARCHITECTURE.deb, for apt install
	@packaging/build build/deb /usr /usr/share/zsh/vendor-completions
	@packaging/deb build/deb dist

wheel: setup-run ## dist/conmon-VERSION-py3-none-any.whl: the package conmon alone
	@packaging/wheel dist

clean: ## remove all that the other targets made, .venv too
	$(if $(wildcard build/systems),$(SUDO) rm -rf build/systems)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

setup-run setup-test setup-vm: setup-%:
	@tools/setup $*

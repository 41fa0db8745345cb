"""Execute the named notebooks in place and store their outputs, without times and progress bars, which differ."""

import sys

import nbclient
import nbformat

for path in sys.argv[1:]:
    print(f"Executing {path}", flush=True)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=None, record_timing=False, resources={"metadata": {"path": "notebooks"}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info.pop("version", None)
    nbformat.write(notebook, path)

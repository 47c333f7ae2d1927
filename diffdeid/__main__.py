from diffdeid.cli import app

app(prog_name="diffdeid")

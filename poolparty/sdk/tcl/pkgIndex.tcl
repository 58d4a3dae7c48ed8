package ifneeded poolparty 0.1.0 [list source [file join $dir poolparty.tcl]]
